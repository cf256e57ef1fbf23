"""The report's own rooms, none of which the method needs."""
