"""From a model and a corpus to a dataset: which rows there are, who makes them, what is done already."""
