"""Edits being made: facts solved as features, inserted, updated, deleted, rebalanced, folded, merged and checked."""
