"""One run of a model under interception: on a copy, with everything of the thread put back."""
