"""Where stores lie: a folder of this machine or object storage, and how files appear there so that nothing is lost."""
