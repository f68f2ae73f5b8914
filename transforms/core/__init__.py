"""The shared vocabulary: config, records, seeding, storage, shards. No Beam and no torch here."""
