"""Photos, videos and folders to descriptors, with enrolment checks, gallery, calibration and report."""
