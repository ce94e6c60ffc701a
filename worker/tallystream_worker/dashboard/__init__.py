"""The static files of the dashboard: a page, a style sheet and ES modules, without a build step."""
