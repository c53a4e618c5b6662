"""Why a trial ends before its last step: early stopping, deadlines, spent hours."""
