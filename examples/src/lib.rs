//! The programs are in `src/bin`. What follows is the workspace's README, whose code is tested here.
#![doc = include_str!("../../README.md")]
