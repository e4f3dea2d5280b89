//! TLS of the front door: who is at the other end of a connection.

mod client;

pub use client::{Certificate, Client};
