"""Images: what strangers bring is inspected, stored by content and never probed again."""
