"""What Elasticsearch and OpenSearch have in common: one wire, which each speaks through its own official client."""
