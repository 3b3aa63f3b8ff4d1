"""The portal: the JSON API of the factory, for its web pages, its command line and everybody's programs."""
