"""Files as documents: text, Markdown, office formats, PDF, HTML and e-mails."""
