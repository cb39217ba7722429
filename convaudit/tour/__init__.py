"""The figures of the guided tour from fully connected to convolution; the page is ``convaudit_reports._tour``."""
