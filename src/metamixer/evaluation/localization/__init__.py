"""Where a network looks: activation maps, and how well they find an object whose box is known."""
