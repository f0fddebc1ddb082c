//! The programs are in `src/bin`. The code of the workspace's README is tested here.
#![cfg_attr(doctest, doc = include_str!("../../README.md"))]
