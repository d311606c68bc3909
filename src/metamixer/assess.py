"""All that is to be known of a cohort on labelled images."""
