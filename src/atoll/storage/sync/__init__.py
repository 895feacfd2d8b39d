"""Directory sync: scan, plan, send, stage, switch."""
