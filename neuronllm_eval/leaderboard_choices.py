"""What flags of `leaderboard` may be: known without what makes the tables."""

GROUPS = ("task", "model", "method")
FORMATS = ("table", "markdown", "csv", "latex", "html", "json")
SUFFIXES = {
    ".txt": "table",
    ".md": "markdown",
    ".csv": "csv",
    ".tex": "latex",
    ".html": "html",
    ".json": "json",
}
