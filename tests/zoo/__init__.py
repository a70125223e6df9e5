"""Small models, sick and healthy, on which the diagnosis is tested."""
