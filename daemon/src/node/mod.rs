//! Builds the rooms from the floor up, starts their tasks, stops them in reverse.
