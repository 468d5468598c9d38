"""Webdataset shards in, batches of documents out."""
