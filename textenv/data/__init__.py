"""Files of records, what their values may be, and the openings of movie reviews that come with the package."""
