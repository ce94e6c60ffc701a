"""The dashboard: a page, a style sheet and ES modules, served as they are. No build step, nothing from elsewhere."""
