"""A cohort of peers: their stages, and how they are mixed and computed."""
