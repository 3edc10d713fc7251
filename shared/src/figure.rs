//! Names of figures that one package counts and another describes.

/// Log lines that were not written: their reader stands still or is gone, or the disk is full.
pub const LOG_LINES_DROPPED: &str = "usher_log_lines_dropped_total";
/// Bugs that ended a task or a thread.
pub const PANICS: &str = "usher_panics_total";
