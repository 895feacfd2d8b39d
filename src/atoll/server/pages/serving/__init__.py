"""Pages of functions that are served, queued and scheduled: their forms, figures, requests and calendars."""
