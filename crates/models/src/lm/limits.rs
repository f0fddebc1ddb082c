//! How large a model may be. A larger number in a configuration is a mistake, and would be found by running out of memory.

/// Layers.
pub(crate) const LAYERS: usize = 1 << 16;
/// Positions of a table of rotary positions.
pub(super) const POSITIONS: usize = 1 << 24;
/// Widths, experts, tokens of a vocabulary: what an index of 32 bits counts.
pub(crate) const SIZE: usize = i32::MAX as usize;
/// Parameters; a thousand times the largest published model of today.
pub(crate) const PARAMETERS: f64 = (1u64 << 50) as f64;

/// The first of these sizes that is larger than it may be, with what it may be.
pub(crate) fn first_beyond(sizes: &[(&'static str, usize, usize)]) -> Option<(&'static str, f64, f64)> {
    let beyond = sizes.iter().find(|(_, size, most)| size > most);
    beyond.map(|&(field, size, most)| (field, size as f64, most as f64))
}
