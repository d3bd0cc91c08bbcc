"""Does a policy use its task id?"""
