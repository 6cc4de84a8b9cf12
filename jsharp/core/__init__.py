"""Both loops: adaptation, steps, objectives, links, and how they are computed."""
