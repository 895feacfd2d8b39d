"""Names, trees and scans that client and peer share; every platform."""
