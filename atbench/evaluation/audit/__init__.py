"""The audit of an evaluation: can its figures be believed?"""
