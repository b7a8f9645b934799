module postern

go 1.26.0

require (
	filippo.io/bigmod v0.1.0
	github.com/pelletier/go-toml/v2 v2.4.3
	github.com/songgao/water v0.0.0-20200317203138-2b4b6d7c09d8
	golang.org/x/crypto v0.58.0
	golang.org/x/sys v0.49.0
)
