"""From a listing to a shard set: plan, shards, engines, commit."""
