"""Images and masks within WebDataset shards (``.tar``) and parquet files, by position."""
