"""Code that pipelines and trainer share: config, records, storage, shards. No Beam, no torch."""
