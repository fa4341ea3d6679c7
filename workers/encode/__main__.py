from components.cli.role import main

main("encode")
