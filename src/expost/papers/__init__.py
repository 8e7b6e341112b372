"""Five papers, one folder each, and the classics: recipes, networks, tables, figures and claims. Nothing but the command line imports this."""
