"""From a page's HTML to a site that is small and needs no script to be read; knows no generator."""
