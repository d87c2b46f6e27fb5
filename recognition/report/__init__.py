"""What an inference run writes: HTML page, tables, summary."""
