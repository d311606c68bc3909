"""What the commands of ``metamixer`` do. ``metamixer.cli`` says how they are called and imports them when they are."""
