//! Clouds with the interfaces of EC2, EBS and S3: who we are to them, how they are asked, and how an image
//! becomes one of theirs, machines and objects.
//!
//! Blocking, one request after another on each thread. No error, log or `Debug` text holds a secret.

mod body;
mod config;
mod credentials;
mod ebs;
mod ec2;
mod error;
mod http;
mod instances;
mod price;
mod profile;
pub mod publish;
mod s3;
mod sign;

pub use config::{Config, Environment, Service};
pub use credentials::Credentials;
pub use ebs::{Ebs, BLOCK};
pub use ec2::{CloudImage, Ec2, NewImage, Snapshot};
pub use error::{Error, Result};
pub use http::random;
pub use instances::{Instance, NewInstance, MOST_USER_DATA};
pub use price::Price;
pub use s3::{Object, LONGEST_VALIDITY, MOST_READ, S3};
pub use sign::iso_time;
