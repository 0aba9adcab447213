"""The public API: what `import cgconvert` offers, and the declarations of its options."""
