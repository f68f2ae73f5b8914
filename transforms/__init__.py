"""What happens to records on their way from concepts to images."""
