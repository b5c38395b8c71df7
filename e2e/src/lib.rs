//! The three programs as processes, a real cluster, and real kubectl: what towline promises, tried from outside.
//!
//! [`stage`] sets everything up; [`table`] runs each case of `cases/` directly and through towline, and compares.

pub mod access;
pub mod acting;
pub mod audit_join;
pub mod autobahn;
pub mod bad_days;
pub mod blind;
pub mod blind_run;
pub mod case;
pub mod chart;
pub mod demo;
pub mod echo;
pub mod egress;
pub mod hostile;
pub mod identity;
pub mod kill;
pub mod only_way;
pub mod pod;
pub mod process;
pub mod programs;
pub mod resume;
pub mod stage;
pub mod suite;
pub mod table;
pub mod two_relays;
