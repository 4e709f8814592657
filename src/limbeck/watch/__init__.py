"""A study or run as it is now: one reading of its folder, and two views of that, in a terminal and on a local page."""
