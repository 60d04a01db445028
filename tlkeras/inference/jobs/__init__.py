"""Work on more images than one process should do: fixed shards that any worker may do, and do again."""
