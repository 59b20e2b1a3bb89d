"""Turn a checkpoint's tokenizer and template files into those of a bundle.

Read first `tokenizer.py` (the tokenizer.json of the bundle, and the names that templates use) and
`chat_template.py` (the template, wherever its generation of files keeps it). `added_tokens.py` and
`pipeline.py` do what transformers' tokenizer class does when it loads the same files.

Another file that transformers reads text settings from gets a reader here, and its keys a rule in
`export/checkpoint/keys/tokenizer.py`.
"""
