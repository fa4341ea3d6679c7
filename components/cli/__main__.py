from components.cli.main import main

main()
