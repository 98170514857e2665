"""What a job is: its configuration, presets, parsing, checks and sizes. Never imports torch, numpy or PIL."""
