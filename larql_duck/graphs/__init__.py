"""The facts as a graph: algorithms of rustworkx over it, and what they find as tables."""
