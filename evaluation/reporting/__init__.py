"""Result files, tables, plots and comparison with published figures."""
